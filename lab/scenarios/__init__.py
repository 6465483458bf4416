"""Every scenario by its name, in the order of the letters."""

from tcptrace.lab.scenario import Scenario
from tcptrace.lab.scenarios import (
    accept_queue,
    client_write_loop,
    freeze_fin_wait1,
    freeze_fin_wait2,
    port_collision,
    real_server,
    server_close_wait,
    server_sigpipe_death,
    syn_sent_pileup,
)

_MODULES = (
    server_close_wait,
    server_sigpipe_death,
    client_write_loop,
    port_collision,
    accept_queue,
    freeze_fin_wait2,
    freeze_fin_wait1,
    real_server,
    syn_sent_pileup,
)

SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario for module in _MODULES for scenario in module.SCENARIOS
}

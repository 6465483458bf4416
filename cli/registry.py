"""Every command, one line each: its name, and ``module:function``.

Imported only when used, so that ``--help`` never touches bcc.
"""

COMMANDS = {
    "states": "tcptrace.cli.states:command",
    "diagnose": "tcptrace.cli.diagnose:diagnose",
    "close-wait": "tcptrace.cli.diagnose:close_wait",
    "sigpipe": "tcptrace.cli.diagnose:sigpipe",
    "write-loops": "tcptrace.cli.diagnose:write_loops",
    "resets": "tcptrace.cli.diagnose:resets",
    "record": "tcptrace.cli.diagnose:record",
    "explain": "tcptrace.cli.explain:command",
    "doctor": "tcptrace.cli.doctor:command",
    "lab": "tcptrace.lab.command:command",
}

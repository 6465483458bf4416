"""Every command, one line each: its name and the module that has it as ``command``.

Imported only when used, so that ``--help`` never touches bcc.
"""

COMMANDS = {
    "states": "tcptrace.cli.states",
    "doctor": "tcptrace.cli.doctor",
}

"""The command ``shiftscope``, also as ``python -m shiftscope``: shield the process from its surroundings, then run."""

import sys


def start() -> None:
    """Run the command line and exit.

    The order matters: first the import path, so that no file of the current folder runs; then the signals, so that Ctrl-C is one
    line while libraries load.
    """
    from shiftscope.runtime.environment import leave_out_current_folder

    leave_out_current_folder()
    from shiftscope.runtime.stopping import exit_code, farewell, handle_signals, ignore_signals

    handle_signals()
    try:
        code = _run()
        ignore_signals()
    except KeyboardInterrupt:
        ignore_signals()
        sys.stderr.write(farewell() + "\n")
        code = exit_code()
    sys.exit(code)


def _run() -> int:
    from shiftscope.runtime.environment import set_environment

    set_environment()
    try:
        from shiftscope.cli import main

        return main()
    except Exception as error:  # a library that cannot be imported
        from shiftscope.runtime.crashes import EXIT_CODE, report_crash

        sys.stderr.write(f"shiftscope: {report_crash(error, sys.argv[1:])}\n")
        return EXIT_CODE


if __name__ == "__main__":
    start()

"""The one exception that means: the input is wrong and the user can mend it."""


class InputError(ValueError):
    """Bad input in one line: what is wrong, where, and how to mend it.

    Every script turns it into that line on stderr and exit status 2 (see ``utils.runtime.run_main``);
    any other exception is a defect of ours and keeps its traceback.
    """

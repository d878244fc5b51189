"""Errors that are the user's to mend, and the interruption that is the user's wish."""


class UserError(Exception):
    """Something in the settings, the data or the machine that the user can mend.

    The message names the setting, row or file and the cure; commands print it without a traceback.
    """


class Interrupted(Exception):
    """The run was asked to stop, and its state is saved."""

"""The one exception that means "the user can mend this": no traceback, exit code 2."""


class UserError(Exception):
    """Bad input: a recipe, data, checkpoint or environment that cannot work.

    The message says what was given, what was expected and what to do.
    """

"""The command `mindglm`: one module a command, each importing the rooms it needs only when it runs."""

"""`workers.workflows`: importable, so that sources which mention workflows load. Running one is not supported."""


class NonRetryableError(Exception):
    """What a workflow's step raises to fail for good."""


__all__ = ["NonRetryableError"]

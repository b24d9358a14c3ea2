"""The words all rooms share: errors, ids, configuration, clock and loggers."""

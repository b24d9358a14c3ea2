"""Who is in: the coordinator, views, joins, the flush, detectors and the journal.

Machines that decide take events and the time and return effects; the shells around them perform.
"""

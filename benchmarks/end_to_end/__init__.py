"""The whole job, by this service and by the loops that people write instead."""

"""System calls without policy: what Linux offers, by names of this house.  Nothing here logs or decides."""

//! Pure decisions: (desired, observed, now) to steps; no I/O, no clock.

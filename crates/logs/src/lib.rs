//! Reads what instances printed, while they live and after they are gone.

//! Pieces that the end-to-end suites share.

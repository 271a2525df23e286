//! Local only.

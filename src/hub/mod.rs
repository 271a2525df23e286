//! Where models come from.

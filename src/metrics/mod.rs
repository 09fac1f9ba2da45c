//! Counters: plain integers that a worker owns; a scraper asks for a copy.

pub mod drops;

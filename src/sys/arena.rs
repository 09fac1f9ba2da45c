//! arena (to be written: see Slot in dataplane::io)

/// A slot.
#[derive(Debug)]
pub struct Slot;

//! What the allocator holds back.

/// Has mimalloc give the kernel whatever memory nobody uses. It does so by itself a second after memory was freed, but
/// only when somebody asks it for more; who has freed much and then rests holds it for ever. Costs up to milliseconds.
pub fn give_back() {
    // SAFETY: no pointer is passed; every thread may call it at any time (mimalloc.h), and where mimalloc is not the
    // allocator it finds nothing.
    unsafe { libmimalloc_sys::mi_collect(true) }
}

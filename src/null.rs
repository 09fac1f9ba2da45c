//! The `ringway-null` program: Ringway, with nothing in the place of the data cipher. For measurements only.

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    ringway::cli::run()
}

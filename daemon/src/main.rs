//! The `everwhen` program. Everything is in the library, so that tests can run it in a process of their own making.

/// Gives memory back: after a base the system's allocator kept some 150 MiB that it could not use again.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    everwhen::main()
}

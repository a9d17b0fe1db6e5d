//! The `everwhen` program. Everything is in the library, so that tests can run it in a process of their own making.

fn main() -> std::process::ExitCode {
    everwhen::main()
}

//! `everwhen` with the crash points of the crash tests armed.

fn main() -> std::process::ExitCode {
    everwhen_engine::failpoint::arm();
    everwhen::main()
}

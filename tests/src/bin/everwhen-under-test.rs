//! `everwhen`, built with the crash points of the crash tests.

fn main() -> std::process::ExitCode {
    everwhen::main()
}

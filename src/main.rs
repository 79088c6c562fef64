//! The `datamon` program: its command line is wired in `cli`.

fn main() -> std::process::ExitCode {
    datamon::cli::main()
}

//! Asks the questions and reports: `cargo run --release -p everwhen-benches -- --help`.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line program")]

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use everwhen_benches::questions::ALL;
use everwhen_benches::world::{Scale, World};
use everwhen_benches::{Outcome, report};

/// What Everwhen costs and how fast it is, on this machine, beside its peers
#[derive(Debug, Parser)]
#[command(name = "everwhen-benches")]
struct Cli {
    /// Questions to ask: encode, latency, stored, requests, first_base, restore, restart, memory, verify, writers [default: all]
    #[arg(value_name = "QUESTION")]
    questions: Vec<String>,
    /// A first impression, in a few minutes
    #[arg(long)]
    quick: bool,
    /// Tiny inputs, to see that everything runs; the figures mean nothing
    #[arg(long, conflicts_with = "quick")]
    smoke: bool,
    /// The everwhen binary [default: beside this program]
    #[arg(long, value_name = "PATH")]
    everwhen: Option<PathBuf>,
    /// The litestream binary, or "off" [default: on the PATH, if there]
    #[arg(long, value_name = "PATH")]
    litestream: Option<PathBuf>,
    /// Where to work; a few GiB are needed. The file system is a part of what is measured
    #[arg(long, value_name = "DIR", default_value = "target/everwhen-benches")]
    work: PathBuf,
    /// Keep what was measured as JSON here, one file a question, and the plots
    #[arg(long, value_name = "DIR")]
    json: Option<PathBuf>,
    /// Put the tables into this README, between its markers
    #[arg(long, value_name = "FILE")]
    readme: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            let mut source = error.source();
            while let Some(cause) = source {
                eprintln!("  because: {cause}");
                source = cause.source();
            }
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Outcome<()> {
    if let Some(unknown) = cli.questions.iter().find(|name| ALL.iter().all(|(known, _)| known != name)) {
        let known: Vec<&str> = ALL.iter().map(|(name, _)| *name).collect();
        return Err(format!("there is no question '{unknown}'; there are {}", known.join(", ")).into());
    }
    let scale = match (cli.smoke, cli.quick) {
        (true, _) => Scale::Smoke,
        (_, true) => Scale::Quick,
        _ => Scale::Full,
    };
    std::fs::create_dir_all(&cli.work)?;
    let machine = report::machine(&cli.work);
    let mut world = World::new(scale, &cli.work)?;
    world.everwhen = cli.everwhen.clone().or_else(beside_us).filter(|path| path.exists());
    world.litestream = match &cli.litestream {
        Some(path) if path.as_os_str() == "off" => None,
        Some(path) => Some(path.clone()),
        None => on_the_path("litestream"),
    };
    eprintln!("{machine}\neverwhen: {:?}, litestream: {:?}", world.everwhen, world.litestream);
    for (name, ask) in ALL {
        if !cli.questions.is_empty() && !cli.questions.iter().any(|wanted| wanted == name) {
            continue;
        }
        let began = Instant::now();
        let answer = ask(&world).map_err(|error| format!("{name}: {error}"))?;
        let plots = cli.json.as_deref().unwrap_or(Path::new("results"));
        println!("{}", answer.markdown(&plots.display().to_string()));
        if let Some(folder) = &cli.json {
            answer.save(folder, &machine)?;
        }
        if let Some(readme) = &cli.readme {
            report::put_into_readme(readme, name, &answer.markdown("results"))?;
            report::put_into_readme(readme, "machine", &machine)?;
        }
        eprintln!("{name}: {:.1} s", began.elapsed().as_secs_f64());
    }
    Ok(())
}

fn beside_us() -> Option<PathBuf> {
    Some(std::env::current_exe().ok()?.with_file_name("everwhen"))
}

fn on_the_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file())
}

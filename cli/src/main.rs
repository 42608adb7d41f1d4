//! The `hearth` binary: a kubectl-like client of a region, and the processes a region and a device are made of.

mod args;
mod context;
mod data_dir;
mod follow;
mod logging;
mod output;
mod region_files;
mod roles;
mod sources;
mod target;
mod verbs;

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Parser as _;

use crate::{
    args::{AgentVerb, Cli, Command, Image, Region, Rollout, Token, Top},
    context::Context,
    logging::log_to_stderr,
};

/// A build of tests of the runtime can leave protections out; this is no such thing.
const _: () = assert!(!hearth_runtime::UNPROTECTED, "hearth is never built with `hearth-runtime/unprotected`");

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(code) => code,
        Err(error) => {
            output::failure(&error);
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<ExitCode> {
    // The agent forks its zygote while this process has one thread and no secrets: before anything else.
    if let Command::Agent(args) = &cli.command {
        if let Some(AgentVerb::Check(args)) = &args.instead {
            return verbs::agent_check::run(args);
        }
        return roles::agent::main(args, cli.log_format);
    }
    rustls::crypto::ring::default_provider().install_default().ok().context("cannot install the TLS provider")?;
    let context = Context::new(cli.config, cli.namespace);
    match cli.command {
        Command::Server(args) => {
            log_to_stderr(cli.log_format, logging::ROLE);
            multi_threaded()?.block_on(roles::server::main(&args))?;
        }
        Command::Up(args) => {
            log_to_stderr(cli.log_format, if args.supervise { logging::ROLE } else { "warn" });
            single_threaded()?.block_on(roles::up::main(&args))?;
        }
        Command::Relay(args) => {
            log_to_stderr(cli.log_format, logging::ROLE);
            multi_threaded()?.block_on(roles::relay::main(&args))?;
        }
        Command::Down(args) => roles::down::run(&args)?,
        Command::Status(args) => roles::status::run(&args)?,
        Command::Image(Image::Import(args)) => verbs::image::import(&args)?,
        Command::Image(Image::Pull(args)) => {
            log_to_stderr(cli.log_format, "error");
            multi_threaded()?.block_on(verbs::image::pull(&args))?;
        }
        Command::Image(Image::Build(args)) => verbs::image::build(&args)?,
        Command::Image(Image::Ls(args)) => verbs::image::list(&args)?,
        Command::Image(Image::Rm(args)) => verbs::image::remove(&args)?,
        Command::Region(Region::Inspect(args)) => verbs::region::inspect(&args)?,
        Command::ApiResources(args) => verbs::api_resources::run(&args),
        Command::Explain(args) => verbs::explain::run(&args)?,
        Command::Completion(args) => verbs::completion::run(&args),
        client => {
            log_to_stderr(cli.log_format, "error");
            return single_threaded()?.block_on(async {
                let done = client_verb(&context, client).await;
                if done.is_ok() {
                    context.keep_servers().await;
                }
                done
            });
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
        Command::Attach(args) => return verbs::attach::run(context, &args).await,
        Command::Debug(args) => return verbs::debug::run(context, &args).await,
        Command::PortForward(args) => verbs::port_forward::run(context, &args).await?,
        Command::Top(Top::Pod(args)) => verbs::top::pods(context, &args).await?,
        Command::Top(Top::Node(args)) => verbs::top::nodes(context, &args).await?,
        Command::Trace(args) => verbs::trace::run(context, &args).await?,
        Command::Wait(args) => verbs::wait::run(context, &args).await?,
        Command::Events(args) => verbs::events::run(context, &args).await?,
        Command::Create(args) => verbs::create::create(context, &args).await?,
        Command::Replace(args) => verbs::create::replace(context, &args).await?,
        Command::Edit(args) => verbs::edit::run(context, &args).await?,
        Command::Patch(args) => verbs::patch::run(context, &args).await?,
        Command::Label(args) => verbs::label::label(context, &args).await?,
        Command::Annotate(args) => verbs::label::annotate(context, &args).await?,
        Command::Scale(args) => verbs::scale::run(context, &args).await?,
        Command::Rollout(Rollout::Status(args)) => verbs::rollout::status(context, &args).await?,
        Command::Cordon(args) => verbs::cordon::run(context, &args, true).await?,
        Command::Uncordon(args) => verbs::cordon::run(context, &args, false).await?,
        Command::Taint(args) => verbs::taint::run(context, &args).await?,
        Command::Version(args) => verbs::version::run(context, &args).await?,
        Command::Join(args) => verbs::join::run(&args).await?,
        Command::Token(Token::Create(args)) => verbs::token::create(context, &args).await?,
        Command::Token(Token::Ls(args)) => verbs::token::list(context, &args).await?,
        Command::Token(Token::Delete(args)) => verbs::token::delete(context, &args).await?,
        Command::Region(Region::Backup(args)) => verbs::region::backup(context, &args).await?,
        Command::Region(Region::Restore(args)) => verbs::region::restore(&args).await?,
        Command::Region(Region::Members(args)) => verbs::members::list(context, &args).await?,
        Command::Region(Region::Dnssec(args)) => verbs::dnssec::run(context, &args).await?,
        Command::Region(Region::Acme(args)) => verbs::acme::run(context, &args).await?,
        Command::Region(Region::Remove(args)) => verbs::members::remove(context, &args).await?,
        Command::Region(Region::TransferLeader(args)) => verbs::members::transfer_leader(context, &args).await?,
        Command::Region(Region::RecoveryKey(args)) => verbs::region_recover::key(context, &args).await?,
        Command::Region(Region::Recover(args)) => verbs::region_recover::recover(context, &args).await?,
        Command::Region(Region::Inspect(_))
        | Command::Up(_)
        | Command::Down(_)
        | Command::Status(_)
        | Command::Server(_)
        | Command::Agent(_)
        | Command::Relay(_)
        | Command::ApiResources(_)
        | Command::Explain(_)
        | Command::Completion(_)
        | Command::Image(_) => {
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

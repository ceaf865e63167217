//! What every verb needs to know: the state directory, the configuration, where the server is.

use crate::args::Global;
use crate::client::{Address, Client};
use crate::exit::{Failure, Result};
use crate::output::Output;
use backplane::Config;
use backplane::config::LoadOptions;
use backplane_registry::Models;
use std::path::{Path, PathBuf};
use std::sync::Once;

/// The configuration of a state directory.
pub const CONFIG_FILE: &str = "backplane.toml";

/// The settings of this call.
#[derive(Debug)]
pub struct Context {
    pub global: Global,
    pub out: Output,
}

impl Context {
    pub fn new(global: Global, out: Output) -> Self {
        Self { global, out }
    }

    /// The state directory; it need not be there yet.
    pub fn state(&self) -> Result<PathBuf> {
        let dir = self.global.state.clone().or_else(backplane::default_state_dir).ok_or_else(|| {
            Failure::failed(
                "no state directory: neither `BACKPLANE_STATE`, `XDG_STATE_HOME` nor `HOME` is set",
            )
            .next("name one with `--state`")
        })?;
        std::path::absolute(&dir).map_err(|error| Failure::io("find", &dir, &error))
    }

    /// What is installed.
    pub fn models(&self) -> Result<Models> {
        Ok(Models::at(self.state()?))
    }

    /// The configuration file: the one that was named, else `backplane.toml` of the state directory if it is there.
    pub fn config_file(&self) -> Result<Option<PathBuf>> {
        if let Some(file) = &self.global.config {
            return Ok(Some(file.clone()));
        }
        let file = self.state()?.join(CONFIG_FILE);
        Ok(file.exists().then_some(file))
    }

    /// Reads and checks the configuration, with these flags over it.
    pub fn load_config(&self, overrides: Vec<(String, String)>) -> Result<Config> {
        self.load_config_of(self.config_file()?, overrides)
    }

    /// As [`Self::load_config`], from this file.
    pub fn load_config_of(&self, file: Option<PathBuf>, overrides: Vec<(String, String)>) -> Result<Config> {
        let missing = file.as_ref().is_some_and(|file| !file.exists());
        let options = LoadOptions { file, overrides, env: true };
        Config::load(options).map_err(|error| {
            let exit = if missing { crate::exit::Exit::NotFound } else { crate::exit::Exit::Failure };
            Failure::new(exit, error.to_string())
                .next("every key and its default: `backplane config init -`")
                .code("config_invalid")
        })
    }

    /// Where the server is: as said, else where the one on this state directory listens, else where the configuration
    /// would have it listen.
    pub fn address(&self) -> Result<Address> {
        if let Some(text) = &self.global.host {
            return Address::parse(text);
        }
        if let Ok(text) = std::fs::read_to_string(address_file(&self.state()?)) {
            return Address::parse(text.trim());
        }
        let configured = self.load_config(Vec::new()).map(|config| config.server.address);
        let mut address = configured.unwrap_or_else(|_| DEFAULT_ADDRESS.into());
        if address.ip().is_unspecified() {
            address.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
        }
        Address::parse(&address.to_string())
    }

    /// Whether the server was said to be on another machine.
    pub fn is_remote(&self) -> Result<bool> {
        Ok(self.global.host.is_some() && !self.address()?.is_local())
    }

    /// Whether a server was named that is not on this state directory: what is installed here is not what it has.
    pub fn is_elsewhere(&self) -> Result<bool> {
        if self.global.host.is_none() || self.is_remote()? {
            return self.is_remote();
        }
        let ours = std::fs::read_to_string(address_file(&self.state()?));
        let ours = ours.ok().and_then(|text| Address::parse(text.trim()).ok());
        Ok(ours.as_ref() != Some(&self.address()?) && self.client()?.is_up())
    }

    /// Refuses what is done on this machine's state directory when another machine was named.
    pub fn local_only(&self, verb: &str) -> Result<()> {
        if self.is_remote()? {
            return Err(Failure::usage(format!(
                "`{verb}` works on the state directory of this machine, and `--host` names another"
            ))
            .next("run it there, or leave `--host` and `BACKPLANE_ADDR` out"));
        }
        Ok(())
    }

    /// A client of the server.
    pub fn client(&self) -> Result<Client> {
        let address = self.address()?;
        let state = self.state()?;
        let key = key(&state, self.global.host.is_none());
        let empty = key.given.is_none() && std::env::var_os(API_KEY).is_some();
        let client = Client::new(address, key, self.global.verbose > 0)?;
        static SAID: Once = Once::new();
        if empty {
            // Who meant to be somebody else must not be the administrator without a word.
            let whose = if client.key().is_some() { "the state directory's own key is" } else { "no key is" };
            SAID.call_once(|| {
                self.out
                    .note(format!("warning: `{API_KEY}` is empty, which counts as not set: {whose} shown"));
            });
        }
        Ok(client)
    }

    /// Tells a running server to look again at what is installed. Without one there is nobody to tell.
    pub fn refresh_server(&self) -> Result<()> {
        let client = self.client()?;
        if client.is_up()
            && let Err(failure) = client.post("/admin/v1/refresh", &serde_json::json!({}))
        {
            self.out.complain(format!("warning: the running server was not told: {failure}"));
        }
        Ok(())
    }
}

/// The key to show, wherever the server is.
const API_KEY: &str = "BACKPLANE_API_KEY";

/// Where the server listens when nobody says otherwise.
pub const DEFAULT_ADDRESS: ([u8; 4], u16) = ([127, 0, 0, 1], 8484);

/// Where a server writes its address: with port 0 nobody else knows it.
pub fn address_file(state: &Path) -> PathBuf {
    state.join("run/address")
}

/// Where the key comes from.
#[derive(Debug, PartialEq)]
pub struct Key {
    /// From `BACKPLANE_API_KEY`: sent wherever the person says.
    pub given: Option<String>,
    /// The state directory's own: sent to a server on this machine only.
    pub own: Option<String>,
    /// Nobody named a server, so this one is on our state directory.
    pub ours: bool,
    /// That server is on our state directory, which says so itself, and `admin.key` is not there.
    pub lost: bool,
}

fn key(state: &Path, ours: bool) -> Key {
    let filled = |text: String| Some(text.trim().to_owned()).filter(|text| !text.is_empty());
    let own = std::fs::read_to_string(state.join(backplane::auth::ADMIN_KEY_FILE));
    let is_gone = own.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound);
    Key {
        given: std::env::var(API_KEY).ok().and_then(filled),
        own: own.ok().and_then(filled),
        ours,
        // Without an address file the default address was taken, where somebody else's server may be.
        lost: ours && is_gone && address_file(state).exists(),
    }
}

//! Who users are at which registry: the files that docker, podman and amphi itself keep, and docker's credential helpers.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};

/// What docker calls its own registry in these files.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";

/// A user and a password, or a token that stands for both.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user.
    pub user: String,
    /// The password; with an empty user, a token that another token is asked for with.
    pub password: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

/// Why credentials cannot be found out or kept.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// A file cannot be read or written.
    #[error("cannot {action} the credentials in {path}", path = path.display())]
    File {
        /// What was attempted.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What is in the way.
        source: io::Error,
    },
    /// A helper fails.
    #[error("the credential helper {program} fails{message}")]
    Helper {
        /// Its name.
        program: String,
        /// What it says.
        message: String,
    },
    /// There is no place for a file.
    #[error("there is no home directory to keep credentials in: set HOME or XDG_CONFIG_HOME")]
    NoHome,
}

/// Such a file, as docker defined it.
#[derive(Debug, Default, Serialize, Deserialize)]
struct AuthFile {
    #[serde(default)]
    auths: BTreeMap<String, Auth>,
    #[serde(default, rename = "credHelpers", skip_serializing_if = "BTreeMap::is_empty")]
    helpers: BTreeMap<String, String>,
    #[serde(default, rename = "credsStore", skip_serializing_if = "Option::is_none")]
    store: Option<String>,
    #[serde(flatten)]
    rest: serde_json::Map<String, serde_json::Value>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Auth {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    auth: Option<String>,
    #[serde(default, rename = "identitytoken", skip_serializing_if = "Option::is_none")]
    identity_token: Option<String>,
}

/// The credentials for a registry, by host and port; `None` where nobody has logged in there.
///
/// # Errors
/// A file is there but cannot be read, or a helper fails.
pub(super) fn find(registry: &str) -> Result<Option<Credentials>, CredentialError> {
    find_in(registry, &files())
}

fn find_in(registry: &str, files: &[PathBuf]) -> Result<Option<Credentials>, CredentialError> {
    for path in files {
        let Some(file) = read(path)? else { continue };
        let keys = keys(registry);
        if let Some(helper) = keys.iter().find_map(|key| file.helpers.get(key))
            && let Some(found) = ask(helper, &keys[0])?
        {
            return Ok(Some(found));
        }
        if let Some(auth) = keys.iter().find_map(|key| file.auths.get(key))
            && let Some(found) = decode(auth)
        {
            return Ok(Some(found));
        }
        if let Some(helper) = &file.store
            && let Some(found) = ask(helper, &keys[0])?
        {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// The names under which a registry may be found, the usual one first.
fn keys(registry: &str) -> Vec<String> {
    let mut keys = vec![registry.to_owned(), format!("https://{registry}"), format!("https://{registry}/v2/")];
    if registry == "docker.io" {
        keys.insert(0, DOCKER_HUB.to_owned());
    }
    keys
}

/// The files, in the order in which they are asked.
fn files() -> Vec<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = variable("HOME");
    let in_home = |rest: &str| home.as_ref().map(|home| home.join(rest));
    let config = variable("XDG_CONFIG_HOME").or_else(|| in_home(".config"));
    [
        variable("REGISTRY_AUTH_FILE"),
        own_file(),
        variable("XDG_RUNTIME_DIR").map(|folder| folder.join("containers/auth.json")),
        config.map(|folder| folder.join("containers/auth.json")),
        variable("DOCKER_CONFIG").or_else(|| in_home(".docker")).map(|folder| folder.join("config.json")),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// The file that `amphi login` writes.
fn own_file() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let config = variable("XDG_CONFIG_HOME").or_else(|| Some(variable("HOME")?.join(".config")))?;
    Some(config.join("amphi").join("auth.json"))
}

fn read(path: &Path) -> Result<Option<AuthFile>, CredentialError> {
    let failed = |source| CredentialError::File { action: "read", path: path.to_owned(), source };
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| failed(error.into())),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(failed(error)),
    }
}

fn decode(auth: &Auth) -> Option<Credentials> {
    if let Some(token) = auth.identity_token.clone().filter(|token| !token.is_empty()) {
        return Some(Credentials { user: String::new(), password: token });
    }
    let text = String::from_utf8(BASE64_STANDARD.decode(auth.auth.as_deref()?).ok()?).ok()?;
    let (user, password) = text.split_once(':')?;
    Some(Credentials { user: user.to_owned(), password: password.to_owned() })
}

/// Asks a helper, `docker-credential-NAME`, by docker's protocol.
fn ask(helper: &str, key: &str) -> Result<Option<Credentials>, CredentialError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Answer {
        username: String,
        secret: String,
    }
    let program = format!("docker-credential-{helper}");
    let failed = |message: String| CredentialError::Helper { program: program.clone(), message };
    let mut child = Command::new(&program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| failed(format!(": {error}")))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A helper that does not read says so by its answer.
        let _ = stdin.write_all(key.as_bytes());
    }
    let output = child.wait_with_output().map_err(|error| failed(format!(": {error}")))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stdout);
        if said.contains("not found") {
            return Ok(None);
        }
        return Err(failed(format!(": {}", said.trim())));
    }
    let answer: Answer = serde_json::from_slice(&output.stdout).map_err(|error| failed(format!(": {error}")))?;
    let user = if answer.username == "<token>" { String::new() } else { answer.username };
    Ok(Some(Credentials { user, password: answer.secret }))
}

/// Keeps credentials for a registry, where only this user reads them, and returns in which file.
///
/// # Errors
/// The file cannot be written.
pub fn store_credentials(registry: &str, credentials: &Credentials) -> Result<PathBuf, CredentialError> {
    let auth = BASE64_STANDARD.encode(format!("{}:{}", credentials.user, credentials.password));
    let path = own_file().ok_or(CredentialError::NoHome)?;
    change(&path, |file| {
        file.auths.insert(keys(registry).swap_remove(0), Auth { auth: Some(auth), identity_token: None });
    })?;
    Ok(path)
}

/// Forgets what [`store_credentials`] kept for a registry; says whether there was anything.
///
/// # Errors
/// The file cannot be written.
pub fn logout(registry: &str) -> Result<bool, CredentialError> {
    let path = own_file().ok_or(CredentialError::NoHome)?;
    let mut found = false;
    if path.exists() {
        change(&path, |file| {
            for key in keys(registry) {
                found |= file.auths.remove(&key).is_some();
            }
        })?;
    }
    Ok(found)
}

fn change(path: &Path, change: impl FnOnce(&mut AuthFile)) -> Result<(), CredentialError> {
    let mut file = read(path)?.unwrap_or_default();
    change(&mut file);
    let write = || -> io::Result<()> {
        let folder = path.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(folder)?;
        let mut new = tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o600)).tempfile_in(folder)?;
        serde_json::to_writer_pretty(&mut new, &file)?;
        new.as_file().sync_all()?;
        new.persist(path)?;
        Ok(())
    };
    write().map_err(|source| CredentialError::File { action: "write", path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_asked_one_after_the_other() {
        let folder = tempfile::tempdir().unwrap();
        let (first, second) = (folder.path().join("1"), folder.path().join("2"));
        let encoded = BASE64_STANDARD.encode("u:p:q");
        fs::write(&first, r#"{"auths":{"other:1":{}},"HttpHeaders":{"a":"b"}}"#).unwrap();
        fs::write(
            &second,
            format!(
                r#"{{"auths":{{"https://index.docker.io/v1/":{{"auth":"{encoded}"}},"r:1":{{"identitytoken":"t"}}}}}}"#
            ),
        )
        .unwrap();
        let files = [folder.path().join("0"), first.clone(), second];
        let found = |registry| find_in(registry, &files).unwrap();
        assert_eq!(found("docker.io"), Some(Credentials { user: "u".into(), password: "p:q".into() }));
        assert_eq!(found("r:1"), Some(Credentials { user: String::new(), password: "t".into() }));
        assert_eq!(found("other:1"), None);
        change(&first, |file| drop(file.auths.remove("other:1"))).unwrap();
        assert!(fs::read_to_string(&first).unwrap().contains("HttpHeaders"), "the rest of the file stays");
        assert_eq!(fs::metadata(&first).unwrap().permissions().mode() & 0o777, 0o600);
        fs::write(&first, "{").unwrap();
        assert!(find_in("docker.io", &files).is_err());
    }
}

//! A registry on this machine: Debian's `docker-registry`, and what can happen on the way to it.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::world;

/// A running registry, with what it has stored; both end with it.
pub(crate) struct Registry {
    child: Child,
    folder: TempDir,
    port: u16,
}

impl Registry {
    /// A registry that gives and takes everything.
    pub(crate) fn start() -> Self {
        Self::with("")
    }

    /// The same with more lines in its configuration; `FOLDER` in them is where its files are.
    pub(crate) fn with(more: &str) -> Self {
        let folder = tempfile::Builder::new().prefix("amphi-test-registry").tempdir().unwrap();
        Self::start_in(folder, more)
    }

    /// The same with a folder in which there is something already. With TLS, the lines say all about HTTP, and `ADDRESS` in
    /// them is where to listen.
    pub(crate) fn start_in(folder: TempDir, more: &str) -> Self {
        let http = if more.contains("tls:") { "" } else { "http:\n  addr: ADDRESS\n" };
        let storage = "storage:\n  filesystem:\n    rootdirectory: FOLDER/data\n";
        let config =
            format!("version: 0.1\n{storage}{http}{more}").replace("FOLDER", &folder.path().display().to_string());
        let (file, log) = (folder.path().join("config.yml"), folder.path().join("log"));
        let mut folder = Some(folder);
        // Somebody else may take the port before the registry does.
        for _ in 0..10 {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            fs::write(&file, config.replace("ADDRESS", &format!("127.0.0.1:{port}"))).unwrap();
            let output = File::create(&log).unwrap();
            let child = Command::new("docker-registry")
                .arg("serve")
                .arg(&file)
                .stdin(Stdio::null())
                .stdout(output.try_clone().unwrap())
                .stderr(output)
                .spawn()
                .expect("docker-registry: apt-get install docker-registry (or: make setup)");
            let mut registry = Self { child, folder: folder.take().unwrap(), port };
            if registry.answers() {
                return registry;
            }
            let said = registry.log();
            assert!(said.contains("address already in use"), "the registry does not start: {said}");
            folder = Some(registry.stop());
        }
        panic!("no port for a registry")
    }

    /// Ends it, and returns its folder.
    fn stop(mut self) -> TempDir {
        let _ = self.child.kill();
        let _ = self.child.wait();
        std::mem::replace(&mut self.folder, tempfile::tempdir().unwrap())
    }

    fn answers(&mut self) -> bool {
        let deadline = Instant::now() + world::seconds(10);
        while Instant::now() < deadline && self.child.try_wait().unwrap().is_none() {
            if TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    }

    /// Host and port.
    pub(crate) fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The name of an image in it.
    pub(crate) fn name(&self, rest: &str) -> String {
        format!("{}/{rest}", self.host())
    }

    /// Puts the image `tag` of the OCI layout `layout` into the registry, by skopeo.
    pub(crate) fn fill(&self, layout: &Path, tag: &str, name: &str) {
        let source = format!("oci:{}:{tag}", layout.display());
        let target = format!("docker://{}", self.name(name));
        super::images::tool("skopeo", &["copy", "-q", "--dest-tls-verify=false", &source, &target]);
    }

    /// Its folder: `data` has what it stores.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// All that it has said.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A way to a registry on which the first connections break off after so many bytes of answers.
pub(crate) struct Breaking {
    port: u16,
    broken: Arc<AtomicUsize>,
}

impl Breaking {
    pub(crate) fn start(registry: &Registry, connections: usize, after: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let broken = Arc::new(AtomicUsize::new(0));
        let (count, target) = (Arc::clone(&broken), registry.host());
        // Ends with the process of the tests.
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (count, target) = (Arc::clone(&count), target.clone());
                std::thread::spawn(move || {
                    let Ok(server) = TcpStream::connect(target) else { return };
                    let (mut up, mut down) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                    std::thread::spawn(move || std::io::copy(&mut up, &mut down));
                    forward(server, client, connections, after, &count);
                });
            }
        });
        Self { port, broken }
    }

    pub(crate) fn name(&self, rest: &str) -> String {
        format!("127.0.0.1:{}/{rest}", self.port)
    }

    /// How many connections have been broken.
    pub(crate) fn broken(&self) -> usize {
        self.broken.load(Ordering::Relaxed)
    }
}

fn forward(mut server: TcpStream, mut client: TcpStream, connections: usize, after: usize, broken: &AtomicUsize) {
    let mut buffer = vec![0; 16 << 10];
    let mut passed = 0;
    while let Ok(length @ 1..) = server.read(&mut buffer) {
        if client.write_all(&buffer[..length]).is_err() {
            break;
        }
        passed += length;
        if passed > after && broken.load(Ordering::Relaxed) < connections {
            broken.fetch_add(1, Ordering::Relaxed);
            break;
        }
    }
    let _ = server.shutdown(std::net::Shutdown::Both);
    let _ = client.shutdown(std::net::Shutdown::Both);
}

/// A registry that answers everything with what `answer` makes of the request's first line: a whole answer of HTTP.
/// For what a real registry does not do.
pub(crate) fn answering(answer: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static) -> String {
    hanging(move |line| Some((answer(line), false)))
}

/// The same, where `answer` may leave the connection open after what it says, and say no more.
pub(crate) fn hanging(answer: impl Fn(&str) -> Option<(Vec<u8>, bool)> + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let answer = Arc::new(answer);
    std::thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let answer = Arc::clone(&answer);
            std::thread::spawn(move || {
                let mut request = Vec::new();
                let mut byte = [0];
                while !request.ends_with(b"\r\n\r\n") && client.read(&mut byte).is_ok_and(|got| got == 1) {
                    request.push(byte[0]);
                }
                let text = String::from_utf8_lossy(&request).into_owned();
                let Some((said, stays)) = answer(text.lines().next().unwrap_or_default()) else { return };
                let _ = client.write_all(&said);
                // Until the other side has had enough.
                while stays && client.read(&mut byte).is_ok_and(|got| got == 1) {}
            });
        }
    });
    host
}

/// An answer of HTTP with a body, after which the connection ends.
pub(crate) fn http(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\n{headers}\r\n", body.len());
    [head.as_bytes(), body].concat()
}

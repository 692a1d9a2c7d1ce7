//! Debian's registry on the loopback interface.

use std::fs::{self, File};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use crate::tools::tool;

/// A running registry; killed when dropped.
pub(crate) struct Registry {
    child: Child,
    port: u16,
}

impl Registry {
    pub(crate) fn start(folder: &Path) -> Self {
        fs::create_dir_all(folder).unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = format!(
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:{port}\n",
            folder.join("data").display()
        );
        fs::write(folder.join("config.yml"), config).unwrap();
        let log = File::create(folder.join("log")).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(folder.join("config.yml"))
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("docker-registry (install it, or: make setup)");
        let mut registry = Self { child, port };
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(registry.child.try_wait().unwrap().is_none(), "the registry has ended");
            std::thread::sleep(Duration::from_millis(20));
        }
        registry
    }

    /// Puts the image of an OCI layout into it.
    pub(crate) fn fill(&self, image: &str) {
        let target = format!("docker://{}", self.name());
        tool("skopeo", &["copy", "-q", "--dest-tls-verify=false", &format!("oci:{image}"), &target]);
    }

    /// The name of the image.
    pub(crate) fn name(&self) -> String {
        format!("127.0.0.1:{}/bench:1", self.port)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

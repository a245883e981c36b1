//! The running server: one thread with a runtime of its own inside the namespace of the outside.
//!
//! Stopping it drops the runtime, and with it every connection, as if the process had been killed.

use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use tokio::sync::oneshot;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Identity, Server, ServerTlsConfig};
use ztunnel_proto::envoy::service::discovery::v3::aggregated_discovery_service_server::AggregatedDiscoveryServiceServer;
use ztunnel_proto::istio::v1::auth::istio_certificate_service_server::IstioCertificateServiceServer;

use super::ads::Ads;
use super::ca::CaService;
use super::faults::Faulty;
use super::shared::{Shared, lock};
use crate::error::{Doing, LabError, Result};
use crate::mesh_file::MeshFile;

/// How often the mesh file is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// A server that runs until this is dropped.
pub(super) struct RunningServer {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl RunningServer {
    pub(super) fn start(
        shared: Arc<Shared>,
        listener: TcpListener,
        certificate: (String, String),
        file: PathBuf,
    ) -> Result<Self> {
        let (stop, stopped) = oneshot::channel();
        listener
            .set_nonblocking(true)
            .doing(|| "make the listener of the control plane non-blocking")?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .doing(|| "make a runtime for the control plane")?;
        let thread = std::thread::Builder::new()
            .name("control-plane".to_owned())
            .spawn(move || {
                let ended = runtime.block_on(async {
                    tokio::select! {
                        ended = serve(shared.clone(), listener, certificate) => ended,
                        () = watch_file(&shared, file) => Ok(()),
                        _ = stopped => Ok(()),
                    }
                });
                if let Err(err) = ended {
                    shared.log(&format!("server ended: {}", err.chain()));
                }
            })
            .doing(|| "start the thread of the control plane")?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for RunningServer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

async fn serve(
    shared: Arc<Shared>,
    listener: TcpListener,
    (certificate, key): (String, String),
) -> Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener).doing(|| "register the listener")?;
    let tls = ServerTlsConfig::new().identity(Identity::from_pem(certificate, key));
    Server::builder()
        .tls_config(tls)
        .doing(|| "configure TLS of the control plane")?
        .tcp_nodelay(true)
        .add_service(Faulty {
            inner: AggregatedDiscoveryServiceServer::new(Ads(shared.clone())),
            shared: shared.clone(),
        })
        .add_service(IstioCertificateServiceServer::new(CaService(shared)))
        .serve_with_incoming(TcpListenerStream::new(listener))
        .await
        .doing(|| "serve")
}

/// Takes over edits of the mesh file. What cannot be used is reported once, and changes nothing.
async fn watch_file(shared: &Shared, file: PathBuf) {
    let mut seen: Option<SystemTime> = None;
    loop {
        let written = std::fs::metadata(&file)
            .and_then(|meta| meta.modified())
            .ok();
        if written.is_some() && written != seen {
            seen = written;
            take_over(shared, &file);
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn take_over(shared: &Shared, file: &std::path::Path) {
    let _edit = lock(&shared.edits);
    let read = MeshFile::read(file);
    let current = lock(&shared.mesh).file.clone();
    let checked = read.and_then(|mesh| {
        if mesh.nodes == current.nodes {
            Ok(mesh)
        } else {
            Err(LabError::new(format!(
                "use {}: `nodes` cannot change while the lab runs",
                file.display()
            )))
        }
    });
    match checked {
        Ok(mesh) if mesh == current => {}
        Ok(mesh) => {
            shared.log(&format!("mesh: took over {}", file.display()));
            shared.change(|state| state.file = mesh);
        }
        Err(err) => {
            let text = format!("mesh: kept the last good state, could not {}", err.chain());
            shared.log(&text);
            eprintln!("{text}");
        }
    }
}

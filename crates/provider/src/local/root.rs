//! Roots of instances: the layers of an image, shown with the instance's own ids, and joined by an overlay if there are
//! several. All mounts are descriptors that are attached nowhere. Kernels before 6.15 copy no mount that is nowhere: there
//! a thread with a mount namespace of its own keeps the layers attached.

use super::forced::Forced;
use super::order::Failure;
use kiln_sys::mount::{self, Attributes, Copying};
use kiln_sys::{CallError, Context, namespace};
use rustix::fs::Mode;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, mpsc};

/// Makes roots. Cheap to share.
#[derive(Debug)]
pub(super) struct Roots {
    forced: Forced,
    /// Where layers are attached, if mounts that are nowhere cannot be copied.
    workshop: Option<Workshop>,
}

/// A mounted layer.
#[derive(Debug)]
pub(super) struct Layer {
    mount: OwnedFd,
    /// Where it is attached.
    workshop: Option<Workshop>,
}

impl Drop for Layer {
    fn drop(&mut self) {
        let Some(workshop) = &self.workshop else { return };
        if let Ok(mount) = self.mount.try_clone() {
            // What cannot be let go of is gone with the thread.
            workshop.order(Box::new(move |_| drop(mount::detach(&mount))));
        }
    }
}

impl Roots {
    /// `over` is any directory of the host.
    pub(super) fn open(forced: Forced, over: &Path) -> Result<Self, CallError> {
        let workshop = if forced.paths || !copies_detached()? { Some(Workshop::open(over)?) } else { None };
        Ok(Self { forced, workshop })
    }

    /// Takes a mount of a layer in.
    pub(super) fn keep(&self, layer: OwnedFd) -> Result<Layer, CallError> {
        match &self.workshop {
            None => Ok(Layer { mount: layer, workshop: None }),
            Some(workshop) => {
                let mount = workshop.run(move |place| {
                    let here = place.directory("l")?;
                    mount::attach_at(layer, &here)?;
                    mount::directory(here.as_ref())
                })?;
                Ok(Layer { mount, workshop: Some(workshop.clone()) })
            }
        }
    }

    /// The root of an instance with these layers, lowest first, and the ids of this user namespace.
    pub(super) fn join(&self, layers: &[Arc<Layer>], users: BorrowedFd<'_>) -> Result<OwnedFd, Failure> {
        let Some(workshop) = &self.workshop else {
            let mut mapped = mapped(layers, users, self.forced)?;
            return match mapped.len() {
                1 => Ok(mapped.remove(0)),
                _ => Ok(mount::overlay(&mapped)?),
            };
        };
        let users = users.try_clone_to_owned().context("dup", "a user namespace")?;
        // What is attached can be copied on every kernel, and no device can be seen from there.
        let (layers, forced) = (layers.to_vec(), Forced { copying: Copying::Auto, ..self.forced });
        workshop.run(move |place| {
            let mut copies = mapped(&layers, users.as_fd(), forced)?;
            if copies.len() == 1 {
                return Ok(copies.remove(0));
            }
            let places: Vec<String> =
                copies.iter().map(|_| place.directory("o")).collect::<Result<_, _>>()?;
            let joined = place.overlay(&copies, &places);
            for here in &places {
                let _ = mount::detach_at(here);
            }
            Ok(joined?)
        })
    }
}

/// Copies of the layers that show the ids of a user namespace.
fn mapped(layers: &[Arc<Layer>], users: BorrowedFd<'_>, forced: Forced) -> Result<Vec<OwnedFd>, Failure> {
    layers.iter().map(|layer| forced.copy(&layer.mount, users)).collect()
}

/// Whether this kernel copies mounts that are attached nowhere.
fn copies_detached() -> Result<bool, CallError> {
    let attributes = Attributes { read_only: true, ..Attributes::default() };
    let nowhere = mount::tmpfs("555", 4096, (0, 0), attributes)?;
    match mount::copy(&nowhere) {
        Ok(_) => Ok(true),
        Err(error) if error.errno() == libc::EINVAL => Ok(false),
        Err(error) => Err(error),
    }
}

type Task = Box<dyn FnOnce(&mut Place) + Send>;

/// A thread in a mount namespace that holds nothing but layers.
#[derive(Debug, Clone)]
struct Workshop(mpsc::Sender<Task>);

/// What the thread has.
struct Place {
    number: u64,
}

impl Workshop {
    fn open(over: &Path) -> Result<Self, CallError> {
        let (sender, tasks) = mpsc::channel::<Task>();
        let (told, hear) = mpsc::channel();
        let over = over.to_string_lossy().into_owned();
        let spawned = std::thread::Builder::new().name("roots".into()).spawn(move || {
            let entered = namespace::unshare_files()
                .and_then(|()| kiln_sys::sandbox::enter_scratch(&over, &[]))
                .and_then(|()| rustix::process::chdir("/").context("chdir", "/"));
            let failed = entered.is_err();
            let _ = told.send(entered);
            let mut place = Place { number: 0 };
            while let (false, Ok(task)) = (failed, tasks.recv()) {
                task(&mut place);
            }
        });
        spawned.context("start a thread for", "roots")?;
        match hear.recv() {
            Ok(entered) => entered.map(|()| Self(sender)),
            Err(_) => Err(gone()),
        }
    }

    fn run<T: Send + 'static, E: From<CallError> + Send + 'static>(
        &self,
        work: impl FnOnce(&mut Place) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E> {
        let (told, hear) = mpsc::channel();
        self.order(Box::new(move |place| drop(told.send(work(place)))));
        hear.recv().unwrap_or_else(|_| Err(gone().into()))
    }

    /// Has something done; a thread that is gone keeps nothing.
    fn order(&self, task: Task) {
        let _ = self.0.send(task);
    }
}

fn gone() -> CallError {
    CallError {
        call: "ask the thread for",
        object: "roots".into(),
        source: std::io::Error::from_raw_os_error(libc::EAGAIN),
    }
}

impl Place {
    /// A new directory, by a relative name: it is all that an instance's mount table shows.
    fn directory(&mut self, prefix: &str) -> Result<String, CallError> {
        self.number += 1;
        let name = format!("{prefix}{}", self.number);
        rustix::fs::mkdir(&name, Mode::from_raw_mode(0o755)).context("mkdir", &name)?;
        Ok(name)
    }

    fn overlay(&self, layers: &[OwnedFd], places: &[String]) -> Result<OwnedFd, CallError> {
        for (layer, here) in layers.iter().zip(places) {
            mount::attach_at(layer.as_fd(), here)?;
        }
        let lower: Vec<&str> = places.iter().rev().map(String::as_str).collect();
        let attributes = Attributes { read_only: true, ..Attributes::default() };
        mount::filesystem("overlay", &[("lowerdir", Some(&lower.join(":")))], attributes)
    }
}

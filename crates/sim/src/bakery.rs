//! The simulated bakery: the same commit gives the same digest; some commits cannot be baked, some images are damaged.

use crate::process::Process;
use crate::project::{Behaviour, behaviour_of};
use crate::world::World;
use async_trait::async_trait;
use kiln_control::execute::{AdmitError, Bakery, BakeryError};
use kiln_model::{Digest, ImageConfig, ImageManifest, ImageName, InstanceId, Release};

/// The bakery that a process sees.
pub(crate) struct SimBakery(pub(crate) Process);

/// What an image of a commit is called.
pub(crate) fn digest(release: &Release, image: &ImageName) -> Digest {
    Digest::of(format!("{} {image}", release.spec.commit).as_bytes())
}

#[async_trait]
impl Bakery for SimBakery {
    async fn bake(&self, release: &Release, image: &ImageName) -> Result<Digest, BakeryError> {
        let (digest, behaviour) = (digest(release, image), behaviour_of(&release.spec.commit));
        let answer =
            self.0.call(["bakery.bake.begun", "bakery.bake.ended"], move |_: &mut World| digest).await;
        if behaviour == Behaviour::Unbakeable {
            return Err(BakeryError { permanent: true, text: "the commit cannot be baked".into() });
        }
        answer.ok_or_else(|| BakeryError { permanent: false, text: "the worker died".into() })
    }

    async fn admit(&self, _: Digest) -> Result<ImageManifest, AdmitError> {
        self.0.stand("bakery.admit").await;
        let damaged = self.0.act(|world| {
            let rate = world.faults.damaged;
            world.rng.chance(rate)
        });
        if damaged {
            return Err(AdmitError::Damaged("a byte changed".into()));
        }
        let (format, architecture) = (1, "amd64".to_owned());
        Ok(ImageManifest { format, architecture, layers: vec![], config: ImageConfig::default() })
    }

    async fn mend(&self, _: &Release, _: Digest) -> Result<String, BakeryError> {
        let answer = self.0.call(["bakery.mend.begun", "bakery.mend.ended"], |_: &mut World| ()).await;
        match answer {
            Some(()) => Ok("it was baked again".into()),
            None => Err(BakeryError { permanent: false, text: "the worker died".into() }),
        }
    }

    fn tail(&self, _: &InstanceId, _: usize) -> Vec<String> {
        vec![]
    }
}

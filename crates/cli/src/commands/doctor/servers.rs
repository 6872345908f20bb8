//! Who leads, if a server answers here.

use super::Finding;
use crate::Context;
use kiln_api::server::LeaseView;
use std::time::Duration;

/// How long the server may take. Whether one runs is not what is examined.
const ANSWER_MAX: Duration = Duration::from_secs(3);

/// Nothing if no server answers.
pub(super) fn findings(context: &Context<'_>) -> Vec<Finding> {
    let Ok(client) = context.client() else { return vec![] };
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
        return vec![];
    };
    let asked = runtime.block_on(async { tokio::time::timeout(ANSWER_MAX, client.server()).await });
    let Ok(Ok(server)) = asked else { return vec![] };
    server.lease.iter().map(|lease| Finding::ok("lease", text(lease))).collect()
}

fn text(lease: &LeaseView) -> String {
    let among = if lease.left_ms.is_some() { ", others may stand by" } else { ", alone" };
    format!("`{}` leads with epoch {}{among}", lease.holder, lease.epoch)
}

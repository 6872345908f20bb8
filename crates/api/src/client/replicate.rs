//! The client's part in sending an image from one server to another: the bytes of a layer pass through it.

use super::{
    ANSWER_TIMEOUT, Client, ClientError, Download, UPLOAD_TIMEOUT, Upload, empty, json, refused, with_query,
};
use crate::export::ImportView;
use crate::path;
use crate::replicate::{LayerQuery, LayerView, MissingLayer, OfferRequest, OfferView, ReceiveRequest};
use http::Method;
use http_body_util::BodyExt;
use tokio::sync::mpsc;
use tokio::time::timeout;

impl Client {
    /// Which layers of an image the server lacks.
    pub async fn offer(&self, request: &OfferRequest) -> Result<OfferView, ClientError> {
        self.call(Method::POST, path::IMAGE_OFFER, json(request), ANSWER_TIMEOUT).await
    }

    /// Registers an image whose layers are all there.
    pub async fn receive(&self, request: &ReceiveRequest) -> Result<ImportView, ClientError> {
        self.call(Method::POST, path::IMAGE_RECEIVE, json(request), ANSWER_TIMEOUT).await
    }

    /// Sends a layer of this server to another one, which has it when this returns; answers with the bytes that were sent.
    pub async fn send_layer(&self, missing: &MissingLayer, to: &Self) -> Result<u64, ClientError> {
        let like: Vec<String> = missing.like.iter().map(ToString::to_string).collect();
        let path = path::fill(path::LAYER, &[&missing.layer.hex()]);
        let path = with_query(&path, &LayerQuery { like: like.join(",") });
        let sent = self.send(Method::GET, &path, empty());
        let response = timeout(ANSWER_TIMEOUT, sent).await.map_err(|elapsed| self.lost(elapsed))??;
        let status = response.status();
        if !status.is_success() {
            let bytes = self.read_all(&path, response).await?;
            return Err(refused(&path, status, &bytes));
        }
        let mut download = Download { client: self.clone(), body: response.into_body() };
        let (sender, receiver) = mpsc::channel(4);
        let pump = async move {
            let mut n_bytes = 0;
            loop {
                match download.next().await {
                    Ok(Some(piece)) => {
                        n_bytes += piece.len() as u64;
                        // A receiver that wants no more says why in its answer.
                        if sender.send(Ok(piece)).await.is_err() {
                            return Ok(n_bytes);
                        }
                    }
                    Ok(None) => return Ok(n_bytes),
                    Err(error) => {
                        // The receiver must not take the half for the whole.
                        let _ = sender.send(Err(std::io::ErrorKind::UnexpectedEof.into())).await;
                        return Err(error);
                    }
                }
            }
        };
        let put =
            to.call::<LayerView>(Method::PUT, path::LAYERS, BodyExt::boxed(Upload(receiver)), UPLOAD_TIMEOUT);
        let (sent, received) = tokio::join!(pump, put);
        received?;
        sent
    }
}

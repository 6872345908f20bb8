//! How a command fails: one row of the error table, a message, a hint, and what was seen.

use kiln_api::client::ClientError;
use kiln_api::error::{Code, Exit, WireError, chain};
use std::io::Write;

/// Why a command did not do what was asked for.
#[derive(Debug, Clone)]
pub struct Failure {
    code: Code,
    message: String,
    hint: Option<String>,
    details: Vec<String>,
    document: Option<serde_json::Value>,
    silent: bool,
}

impl Failure {
    /// A failure of that kind. The message is in lower case, without a final period.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: None, details: vec![], document: None, silent: false }
    }

    /// With what helps.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// With what was seen, one line each.
    #[must_use]
    pub fn details(mut self, details: Vec<String>) -> Self {
        self.details = details;
        self
    }

    /// With a document of which `--json` prints the fields beside the error.
    #[must_use]
    pub(crate) fn document(mut self, document: &impl serde::Serialize) -> Self {
        self.document = serde_json::to_value(document).ok();
        self
    }

    /// Only an exit code: there is nothing to tell, or nobody to tell it to.
    pub(crate) fn silent(code: Code) -> Self {
        Self { silent: true, ..Self::new(code, "") }
    }

    /// How the process ends.
    pub fn exit(&self) -> Exit {
        if self.silent && self.code == Code::File { Exit::Done } else { self.code.entry().exit }
    }

    /// Which row of the table it is.
    pub fn code(&self) -> Code {
        self.code
    }

    /// The failure as text: `error: …`, what was seen, `hint: …`.
    pub fn text(&self) -> String {
        let mut text = format!("error: {}\n", self.message);
        for line in &self.details {
            text.push_str(&format!("  {line}\n"));
        }
        if let Some(hint) = &self.hint {
            text.push_str(&format!("hint: {hint}\n"));
        }
        text
    }

    /// The failure as one document.
    pub fn json(&self) -> serde_json::Value {
        let mut error = WireError::new(self.code, self.message.clone(), self.hint.clone());
        error.details = self.details.clone();
        let mut document = self.document.clone().unwrap_or_else(|| serde_json::json!({}));
        if let (Some(fields), Ok(error)) = (document.as_object_mut(), serde_json::to_value(error)) {
            fields.insert("error".into(), error);
        }
        document
    }

    /// Tells the user. With `json`, the document goes to stdout as well.
    pub(crate) fn print(&self, json: bool) {
        if self.silent {
            return;
        }
        // If neither can be written, the exit code still tells.
        let _ = std::io::stderr().write_all(self.text().as_bytes());
        if json {
            let _ = writeln!(std::io::stdout(), "{:#}", self.json());
        }
    }
}

impl From<kiln_spec::SpecErrors> for Failure {
    fn from(errors: kiln_spec::SpecErrors) -> Self {
        let hint = errors.hint().unwrap_or_else(|| Code::InvalidProject.entry().help.to_owned());
        Self::new(Code::InvalidProject, errors.message()).details(errors.details()).hint(hint)
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let code = error.code();
        if let ClientError::Server(wire) = error {
            let WireError { message, hint, details, .. } = *wire;
            let hint = hint.or_else(|| Some(code.entry().help.to_owned()));
            return Self { hint, details, ..Self::new(code, message) };
        }
        Self::new(code, chain(&error)).hint(code.entry().help)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_json_say_the_same() {
        let failure = Failure::new(Code::TakenBack, "release 3 was taken back: web-7: exited with status 1")
            .details(vec!["web-7: bind: address in use".into()])
            .hint("`kiln why` says more")
            .document(&serde_json::json!({ "release": 3 }));
        assert_eq!(
            failure.text(),
            "error: release 3 was taken back: web-7: exited with status 1\n  web-7: bind: address in use\nhint: `kiln why` says more\n"
        );
        let json = failure.json();
        assert_eq!(json["release"], 3);
        assert_eq!(json["error"]["code"], "taken_back");
        assert_eq!(json["error"]["exit"], 1);
        assert_eq!(failure.exit().number(), 1);
    }
}

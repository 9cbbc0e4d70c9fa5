use std::fmt;

/// A handshake that failed because the two ends do not belong together. The libraries below tell it in words only.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Breach {
    /// The other's certificate is of another authority, for another name, or out of date.
    Untrusted(String),
    /// The other does not speak TLS.
    NoTls,
    /// The other answers a call without TLS with something else.
    NoPlainText,
    /// The other refused this task's certificate.
    Refused(String),
}

impl Breach {
    /// What the text of an error means; nothing where it is about something else.
    pub(crate) fn of(text: &str) -> Option<Self> {
        if let Some((_, why)) = text.split_once("invalid peer certificate: ") {
            Some(Self::Untrusted(why.to_owned()))
        } else if text.contains("received corrupt message") {
            Some(Self::NoTls)
        } else if text.contains("frame with invalid size") {
            // The first bytes of a TLS alert (or of a line of text), read as the length of a frame.
            Some(Self::NoPlainText)
        } else if let Some((_, alert)) = text.split_once("received fatal alert: ") {
            Some(Self::Refused(alert.to_owned()))
        } else {
            None
        }
    }

    pub(crate) fn hint(&self) -> &'static str {
        match self {
            Self::Untrusted(why) | Self::Refused(why) if is_about_dates(why) => {
                "compare the certificate's dates with the clocks of both hosts"
            }
            Self::Untrusted(_) | Self::Refused(_) => {
                "tasks of a job share the certificates in <model_dir>/tls: is it the same folder for both, and is the address not that of another job? Certificates of your own (`coati: security:`) must be of the same authority and name the host"
            }
            Self::NoTls | Self::NoPlainText => {
                "is `coati.security.tls` the same for all tasks, and is the address not that of another program?"
            }
        }
    }
}

/// rustls: `certificate expired: verification time …`, `NotValidYet`; alerts: `CertificateExpired`.
fn is_about_dates(why: &str) -> bool {
    ["xpired", "NotValidYet", "not valid yet"]
        .iter()
        .any(|words| why.contains(words))
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Untrusted(why) => write!(f, "its certificate is not one of this job: {why}"),
            Self::NoTls => f.write_str("it does not speak TLS"),
            Self::NoPlainText => f.write_str("it does not understand calls without TLS"),
            Self::Refused(alert) => write!(f, "it refuses this task's certificate: {alert}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_out_of_date_points_to_the_clocks() {
        for why in [
            "certificate expired: verification time 1 (UNIX)",
            "NotValidYet",
            "CertificateExpired",
        ] {
            assert!(Breach::Untrusted(why.into()).hint().contains("clocks"), "{why}");
            assert!(Breach::Refused(why.into()).hint().contains("clocks"), "{why}");
        }
        assert!(!Breach::Untrusted("UnknownIssuer".into()).hint().contains("clocks"));
    }

    #[test]
    fn what_libraries_say_is_understood() {
        for (text, expected) in [
            (
                "invalid peer certificate: UnknownIssuer",
                Some(Breach::Untrusted("UnknownIssuer".into())),
            ),
            (
                "received corrupt message of type InvalidContentType",
                Some(Breach::NoTls),
            ),
            (
                "connection error detected: frame with invalid size",
                Some(Breach::NoPlainText),
            ),
            (
                "received fatal alert: CertificateRequired",
                Some(Breach::Refused("CertificateRequired".into())),
            ),
            ("Connection refused (os error 111)", None),
        ] {
            assert_eq!(Breach::of(text), expected, "{text}");
        }
    }
}

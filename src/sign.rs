//! Signatures of the Standard Webhooks specification: HMAC-SHA256 over id, time and body. Pure. For callbacks, and for
//! workers with the feature `egress`.

use base64::{
    Engine,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig, general_purpose::STANDARD},
};
use ring::hmac;
#[cfg(feature = "server")]
use ring::rand::{SecureRandom, SystemRandom};

use crate::config::WebhookSecrets;

/// With or without padding, as the reference libraries read secrets.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The keys that sign.
#[derive(Clone)]
pub struct Secrets(Vec<hmac::Key>);

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Secrets({})", self.0.len())
    }
}

impl Secrets {
    /// Reads them: `whsec_` and 24 to 64 bytes in base64 each.
    ///
    /// # Errors
    /// Which of them is no secret.
    pub fn read(secrets: &WebhookSecrets) -> Result<Self, String> {
        let key = |(index, secret): (usize, &str)| match LENIENT.decode(secret) {
            Ok(bytes) if (24..=64).contains(&bytes.len()) => Ok(hmac::Key::new(hmac::HMAC_SHA256, &bytes)),
            _ => Err(format!("secret {} is not 24 to 64 bytes in base64", index + 1)),
        };
        secrets.expose().enumerate().map(key).collect::<Result<_, _>>().map(Self)
    }

    /// The value of `webhook-signature`: a signature by each secret. Neither `id` nor `timestamp` (seconds since 1970)
    /// has a dot.
    #[must_use]
    pub fn sign(&self, id: &str, timestamp: &str, body: &[u8]) -> String {
        let signature = |key: &hmac::Key| {
            let mut signing = hmac::Context::with_key(key);
            for part in [id.as_bytes(), b".", timestamp.as_bytes(), b".", body] {
                signing.update(part);
            }
            format!("v1,{}", STANDARD.encode(signing.sign()))
        };
        self.0.iter().map(signature).collect::<Vec<_>>().join(" ")
    }
}

/// A secret that nobody has seen; none where the system has no random numbers.
#[cfg(feature = "server")]
pub(crate) fn new_secret() -> Option<String> {
    let mut bytes = [0; 32];
    SystemRandom::new().fill(&mut bytes).ok()?;
    Some(format!("whsec_{}", STANDARD.encode(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const OTHER: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
    /// From the tests of the reference libraries.
    const VECTOR: (&str, &str, &[u8], &str) = (
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "1614265330",
        b"{\"test\": 2432232314}",
        "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    );

    fn sign(secrets: &str) -> String {
        let (id, timestamp, body, _) = VECTOR;
        Secrets::read(&WebhookSecrets::new(secrets)).ok().unwrap().sign(id, timestamp, body)
    }

    #[test]
    fn it_is_the_signature_of_the_reference_libraries() {
        assert_eq!(sign(SECRET), VECTOR.3);
    }

    #[test]
    fn each_secret_signs() {
        let (first, second) = (sign(SECRET), sign(OTHER));
        assert_ne!(first, second);
        assert_eq!(sign(&format!("{SECRET}\n{OTHER}\n")), format!("{first} {second}"));
    }

    #[cfg(feature = "server")]
    #[test]
    fn a_new_secret_is_one() {
        assert!(!sign(&new_secret().unwrap()).is_empty());
        assert_ne!(new_secret(), new_secret());
    }

    #[test]
    fn padding_is_optional_and_length_is_not() {
        let padded = "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
        assert_eq!(sign(padded), sign(padded.trim_end_matches('=')));
        for bad in
            ["whsec_AAAA", "whsec_*", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", &"whsec_AAAA".repeat(9)]
        {
            assert!(Secrets::read(&WebhookSecrets::new(bad)).is_err(), "{bad}");
        }
    }
}

//! Consent of further people: each signs the same text, in a namespace of its own, wherever they are.
//!
//! Two signatures count as two people only if neither could be the other's: other names, other keys, no line of allowed_signers that
//! lists the one's key under the other's name, and no certificate that gives the one's key the other's name. A person with two keys of their own under two names of their own cannot be told from two
//! people; who keeps the list sees to that.

use breakglass_api::{COSIGN_NAMESPACE, v1};

use super::{
    Check, Refusal,
    proof::{self, Signer},
    signers::AllowedSigners,
};

/// Most co-signatures in a request: with the largest quorum, and RSA-4096 keys, a request stays within the message limit.
pub const COSIGNATURES_MAX: usize = 7;

/// Somebody who consented.
#[derive(Clone, Debug)]
pub struct Cosigned {
    /// Who.
    pub signer: Signer,
    /// Their signature, for the record.
    pub signature: Vec<u8>,
}

/// Checks every co-signature over `text`, and that with `first` enough distinct people have signed.
pub fn verify(
    cosignatures: &[v1::Cosignature],
    text: &[u8],
    first: &Signer,
    check: &Check<'_>,
) -> Result<Vec<Cosigned>, Refusal> {
    enough(cosignatures.len(), check)?;
    let mut cosigned: Vec<Cosigned> = Vec::new();
    for cosignature in cosignatures {
        let signer = verify_one(cosignature, text, check).map_err(|e| {
            Refusal::new(e.code, format!("the co-signature of {:?}: {}", cosignature.principal, e.message))
        })?;
        let mut others = std::iter::once(first).chain(cosigned.iter().map(|other| &other.signer));
        if let Some(same) = others.find(|other| !distinct(other, &signer, check.signers)) {
            return Err(Refusal::new(
                "same-person",
                format!(
                    "{:?} and {:?} may be one person; somebody else must co-sign",
                    same.principal, signer.principal
                ),
            ));
        }
        cosigned.push(Cosigned { signer, signature: cosignature.signature.clone() });
    }
    Ok(cosigned)
}

fn enough(count: usize, check: &Check<'_>) -> Result<(), Refusal> {
    let required = check.policy.rules.required_signers.max(1);
    if count > COSIGNATURES_MAX {
        return Err(Refusal::new(
            "too-many-signatures",
            format!("the request has {count} co-signatures, the limit is {COSIGNATURES_MAX}"),
        ));
    }
    if count + 1 < required {
        return Err(Refusal::new(
            "quorum",
            format!(
                "this host opens for {required} people together and {} signed; have the request co-signed: breakglass cosign",
                count + 1
            ),
        ));
    }
    Ok(())
}

fn verify_one(cosignature: &v1::Cosignature, text: &[u8], check: &Check<'_>) -> Result<Signer, Refusal> {
    let signer = proof::verify(
        text,
        &cosignature.signature,
        COSIGN_NAMESPACE,
        &cosignature.principal,
        check.signers,
        check.circumstances(),
    )?;
    super::check_signer(&signer, check)?;
    Ok(signer)
}

fn distinct(one: &Signer, other: &Signer, signers: &AllowedSigners) -> bool {
    let listed = |principal: &str, signer: &Signer| {
        signers.entries().iter().any(|e| !e.cert_authority && e.names(principal, &signer.key))
            || signer.certificate.as_ref().is_some_and(|c| c.principals.iter().any(|name| name == principal))
    };
    one.principal != other.principal
        && one.key != other.key
        && !listed(&one.principal, other)
        && !listed(&other.principal, one)
}

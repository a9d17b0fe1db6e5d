//! The three clouds, and what an operator sets for each: the words of advice are in one place.

/// Who keeps a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Provider {
    /// S3 and its like.
    S3,
    /// Google Cloud Storage.
    Google,
    /// Azure Blob Storage.
    Azure,
}

impl Provider {
    /// Of a store's address; `None` for one that is in no cloud.
    pub(super) fn of(url: &str) -> Option<Self> {
        match url.split_once("://")?.0 {
            "s3" | "s3a" => Some(Self::S3),
            "gs" | "gcs" => Some(Self::Google),
            "az" | "azure" => Some(Self::Azure),
            _ => None,
        }
    }

    /// How its variables begin.
    pub(super) fn variables(self) -> &'static str {
        match self {
            Self::S3 => "AWS_",
            Self::Google => "GOOGLE_",
            Self::Azure => "AZURE_",
        }
    }

    /// When it does not answer.
    pub(super) fn address_advice(self) -> &'static str {
        match self {
            Self::S3 => {
                "Check the network, and for an S3-compatible store AWS_ENDPOINT_URL (and AWS_ALLOW_HTTP=true when it \
                 speaks plain HTTP) and AWS_REGION."
            }
            Self::Google => {
                "Check the network, and for a store that stands in for Google's GOOGLE_BASE_URL (and \
                 GOOGLE_ALLOW_HTTP=true when it speaks plain HTTP)."
            }
            Self::Azure => {
                "Check the network and AZURE_STORAGE_ACCOUNT_NAME (it is part of the host's name); for another address \
                 AZURE_STORAGE_ENDPOINT (and AZURE_ALLOW_HTTP=true when it speaks plain HTTP), for Azurite \
                 AZURE_STORAGE_USE_EMULATOR=true."
            }
        }
    }

    /// When there is nothing to sign with, or it is not taken.
    pub(super) fn credentials_advice(self) -> &'static str {
        match self {
            Self::S3 => {
                "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN if there is one), or run where \
                 the instance has a role. Profiles in ~/.aws are not read."
            }
            Self::Google => {
                "Set GOOGLE_APPLICATION_CREDENTIALS or GOOGLE_SERVICE_ACCOUNT to the path of a key file, or \
                 GOOGLE_SERVICE_ACCOUNT_KEY to its content, or run where the instance has a service account."
            }
            Self::Azure => {
                "Set AZURE_STORAGE_ACCOUNT_NAME, and AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN (or \
                 AZURE_CLIENT_ID, AZURE_CLIENT_SECRET and AZURE_TENANT_ID), or run where there is a managed identity. \
                 Connection strings are not read."
            }
        }
    }

    /// When there is no such bucket.
    pub(super) fn bucket_advice(self) -> &'static str {
        match self {
            Self::S3 => {
                "Check its name, AWS_ENDPOINT_URL and AWS_REGION, or create it: Everwhen makes objects, not buckets."
            }
            Self::Google => "Check its name, or create it: Everwhen makes objects, not buckets.",
            Self::Azure => {
                "Check the container's name and AZURE_STORAGE_ACCOUNT_NAME, or create it: Everwhen makes objects, not \
                 containers."
            }
        }
    }
}

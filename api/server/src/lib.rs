//! One resource service behind the doors of a region: authentication, authorisation, admission.

//! On-demand tunnels to devices by their key, over iroh.

"""ID tokens for Cloud Run: credentials, minting, and the token cache.

What each credential can do (Application Default Credentials; tests/e2e/test_credentials.py has a test for each line):

================================================  ==========================  =================================
credential                                        ID token for itself         source of impersonation, with
                                                                              delegates or without
================================================  ==========================  =================================
metadata server (Compute Engine, GKE, Cloud Run)  yes: `identity`             yes: `token`
`service_account` key file                        yes: signed assertion at    yes: signed assertion at
                                                  `token_uri`                 `token_uri`
`impersonated_service_account`                    yes, of its target:         yes, its target is the source:
                                                  `generateIdToken`           `generateAccessToken`
`external_account` from file, url, executable¹,   no: `AmbientUnsupported`    yes: exchange at the STS; through
AWS (environment's keys, or metadata: IMDSv2)                                 the account that the file names,
                                                                              if it names one
`authorized_user`                                 no: `AmbientUnsupported`    yes: refresh grant
`external_account_authorized_user`                no: `AmbientUnsupported`    yes: refresh grant at the STS
`external_account` with an X.509 certificate      refused, with a sentence    refused
`gdch_service_account`                            refused, with a sentence    refused
anything of another universe                      refused, with a sentence    refused
================================================  ==========================  =================================

¹ where `GOOGLE_EXTERNAL_ACCOUNT_ALLOW_EXECUTABLES` is 1; it has the time that its file says (5 to 120 s).

With a source's access token, `generateIdToken` mints for the account that a route impersonates. `AmbientUnsupported`
names three remedies.

The way of a token: `relay` reads a route's `slot`; without a token in it, `source` asks its `cache` and starts a mint
(`minter`); `google` mints with one of `credentials`, over `http_client`.

* `source`                    tokens for routes: one mint for all requests of a key, refresh ahead of expiry, back-off
* `cache`, `entry`, `slot`    where a token is kept (aiocache), the state of one key, and what the data path reads of it
* `minter`, `uncached`        one mint with its deadline and the comparison of clocks; mints of discoveries
* `gate`                      how many calls are under way at a time; discoveries get half of them
* `polling`                   checks for changed credentials while tokens are cached
* `schedule`, `model`         when to refresh and retry; keys, tokens and their claims (pure)
* `google`                    the mint
* `credentials`               one class for each kind of credential, and what they have in common
* `http_client`, `aiohttp_resolver`, `http_proxies`, `calls`   HTTP: the client, look-ups, proxies, what an answer says
* `blocking`, `regular_files` threads for calls that can block for ever; files that may be pipes or have no end
"""

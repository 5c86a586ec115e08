"""Who we are to Cloud Run: credentials, minting, and the cache of ID tokens.

What each credential can do (Application Default Credentials; tests/e2e/test_credentials.py holds every line of it):

================================================  ==========================  =================================
credential                                        ID token for itself         source of impersonation, with
                                                                              delegates or without
================================================  ==========================  =================================
metadata server (Compute Engine, GKE, Cloud Run)  yes                         yes
`service_account` key file                        yes                         yes
`impersonated_service_account`                    yes, of its target          yes, its target is the source
`external_account` from file, url, executable¹,   no: three ways out          yes; through the account that
AWS (environment's keys, or metadata: IMDSv2)                                 the file names, if it names one
`authorized_user`                                 no: three ways out          yes
`external_account_authorized_user`                no: three ways out          yes
`external_account` with an X.509 certificate      refused, with a sentence    refused
`gdch_service_account`                            refused, with a sentence    refused
anything of another universe                      refused, with a sentence    refused
================================================  ==========================  =================================

¹ where `GOOGLE_EXTERNAL_ACCOUNT_ALLOW_EXECUTABLES` is 1; it has the time that its file says (5 to 120 s).

The modules:

* `model`, `slot`, `schedule`, `calls`   values, the hot path's view, timing, what may be told of an answer (pure)
* `source`, `entry`, `fresh`             cache, single flight, refresh ahead, back-off; mints of discoveries
* `timed`, `watching`                    one mint and the clock; a look after the credentials while tokens are kept
* `google`, `current`                    the mint, and the only HTTP in this room; which credentials there are now
* `adc`, `ambient`                       where credentials are; what a credential source can do
* `metadata`, `files`, `impersonation`   metadata server, credential files, IAM
* `gke`                                  what GKE's metadata server means (pure)
* `credentials`, `worker`                google-auth, and the threads that it blocks
* `subject`, `executable`                subject tokens of federation from this machine's files and executables
* `reading`, `blocking`                  files that may be pipes or never end, and threads that may be lost
* `explaining`                           what to tell a person when google-auth gives up (pure)
"""

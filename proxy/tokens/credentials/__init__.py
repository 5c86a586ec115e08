"""Google credentials: one class for each kind, in a file of its own.

To add a kind of credential file, write its class and add it to the table in `kinds`. The same goes for a source of
subject tokens, with the table in `external_account`.

* `service_account`, `authorized_user`, `external_account`, `external_account_authorized_user`,
  `impersonated_service_account`, `gdch_service_account`   the kinds of credential files
* `metadata_server`, `gke`            the metadata server, and what GKE's means
* `subject_token_aws`, `subject_token_executable`, `subject_token_file`, `subject_token_url`   sources of subject tokens
* `executable`                        runs the executable of a credential file
* `kinds`                             the table of kinds
* `lookup`                            where Application Default Credentials are
* `active`                            which credentials there are now, and when they change
* `file`, `google_auth_file`, `subject_token`   what kinds have in common; `members` checks single members of a file
* `source`                            what a credential source can do; access tokens are cached
* `iam_credentials`                   impersonation
* `google_auth`, `google_auth_errors`, `google_auth_threads`   google-auth, its exceptions in words, its threads
"""

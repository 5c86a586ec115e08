"""The engine on libnghttp2, compiled (Cython): what the library is asked, what it is not, and what is done instead.

One module, `engine`, of several files: it has commands and questions, `stream` one stream, its turns and its queue,
`receiving` the library's callbacks, `session` what the library gets and gives, `frames` the cutting and counting of
frames before the library sees any, `section_reader` and `section_writer` field sections, `outbox` the octets to send.

The library has the checks of frames, the decompression, the states of streams, the windows and the settings. Where it
would do something else than the contract (`proxy.http2.engine`) says, it is not asked:

==========================================  ==========================================================================
the library                                 so here
==========================================  ==========================================================================
after GOAWAY, sent or received, closes      GOAWAY is kept from it (`frames`), and written without it
streams, stops reading, forbids requests
ends the connection when a client opens     it is told of no limit: MAX_CONCURRENT_STREAMS is added to the SETTINGS that
one stream too many                         it sends, and streams above it are refused
compresses by a policy of its own           it sends empty sections, which `SectionWriter` fills (it says why)
checks heads loosely, and repairs them      that is switched off: `SectionReader`
keeps a tree of PRIORITY                    PRIORITY is kept from it, and SETTINGS say that no priorities are heeded
ends the connection when a stream's window  such updates are kept from it
is updated by nothing, or (1.70) overflows
ends the connection when its SETTINGS are   the second acknowledgement is kept from it
acknowledged twice
reports content read by read                it gets whole frames only
sends no empty DATA through a closed        an end without content is HEADERS for the library, DATA on the wire
window
gives up without a word                     what it has to send is collected after each read: GOAWAY says so
lets SETTINGS overflow a stream's window    an RST_STREAM that was not submitted here says so
skips frames on streams that are gone, and  what the peer has ended, and ids that it has passed over, are in
takes lower ids for such streams            `policy.stream_history`
==========================================  ==========================================================================

The library calls back from within `nghttp2_session_mem_recv` and `nghttp2_session_mem_send` only. Nothing is raised
through it: a callback that raises returns an error with its exception set, and `Session` raises that again. Receivers
are called from within these callbacks and may command any stream: what they queue on this connection is collected when
the library has returned.
"""

package record

import (
	"bytes"
	"crypto/tls"
	"encoding/hex"
	"io"
	"testing"
)

func unhex(tb testing.TB, s string) []byte {
	tb.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// traces are the application records of RFC 8448: §3, a simple handshake, and
// §4, a resumed one. Both ends send 50 bytes, 0 to 49, and close_notify.
var traces = map[string]struct {
	clientSecret, serverSecret         string
	clientKey, clientIV                string
	serverKey, serverIV                string
	ticket, ticketRecord               string // sent first by the server
	clientData, serverData             string
	clientCloseNotify, serverCloseNotf string
}{
	"simple": {
		clientSecret: "9e40646ce79a7f9dc05af8889bce6552875afa0b06df0087f792ebb7c17504a5",
		serverSecret: "a11af9f05531f856ad47116b45a950328204b4f44bfb6b3a4b4f1f3fcb631643",
		clientKey:    "17422dda596ed5d9acd890e3c63f5051", clientIV: "5b78923dee08579033e523d9",
		serverKey: "9f02283b6c9c07efc26bb9f2ac92e356", serverIV: "cf782b88dd83549aadf1e984",
		ticket: "040000c90000001efad6aac502000000b22c035d829359ee5ff7af4ec900000000262a6494dc486d2c8a34cb33fa90bf" +
			"1b0070ad3c498883c9367c09a2be785abc55cd226097a3a982117283f82a03a143efd3ff5dd36d64e861be7fd61d2827" +
			"db279cce145077d454a3664d4e6da4d29ee03725a6a4dafcd0fc67d2aea70529513e3da2677fa5906c5b3f7d8f92f228" +
			"bda40dda721470f9fbf297b5aea617646fac5c03272e970727c621a79141ef5f7de6505e5bfbc388e93343694093934a" +
			"e4d3570008002a000400000400",
		ticketRecord: "17030300de3a6b8f90414a97d6959c3487680de5134a2b240e6cffac116e95d41d6af8f6b580dcf3d11d63c758db289a" +
			"015940252f55713e061dc13e078891a38efbcf5753ad8ef170ad3c7353d16d9da773b9ca7f2b9fa1b6c0d4a3d03f75e0" +
			"9c30ba1e62972ac46f75f7b981be63439b2999ce13064615139891d5e4c5b406f16e3fc181a77ca475840025db2f0a77" +
			"f81b5ab05b94c01346755f69232c86519d86cbeeac87aac347d143f9605d64f650db4d023e70e952ca49fe5137121c74" +
			"bc2697687e248746d6df353005f3bce18696129c8153556b3b6c6779b37bf15985684f",
		clientData: "1703030043a23f7054b62c94d0affafe8228ba55cbefacea42f914aa66bcab3f2b9819a8a5b46b395bd54a9a20441e2b" +
			"62974e1f5a6292a2977014bd1e3deae63aeebb21694915e4",
		serverData: "17030300432e937e11ef4ac740e538ad36005fc4a46932fc3225d05f82aa1b36e30efaf97d90e6dffc602dcb501a59a8" +
			"fcc49c4bf2e5f0a21c0047c2abf332540dd032e167c2955d",
		clientCloseNotify: "1703030013c9872760655666b74d7ff1153efd6db6d0b0e3",
		serverCloseNotf:   "1703030013b58fd67166ebf599d24720cfbe7efa7a8864a9",
	},
	"resumed": {
		clientSecret: "2abbf2b8e381d23dbebe1dd2a7d16a8bf484cb4950d23fb7fb7fa8547062d9a1",
		serverSecret: "cc21f1bf8feb7dd5fa505bd9c4b468a9984d554a993dc49e6d285598fb672691",
		clientKey:    "3cf122f301c6358ca7989553250efd72", clientIV: "ab1aec26aa78b8fc1176b9ac",
		clientData: "1703030043b1cebce242aa201be9ae5e1cb2a9aa4b33d4e866af1edb068919237741aa031d7a74d491c99b9d4e232b74" +
			"206bc6fbaa04fe78be44a9b4f54320a17eb76992afac3103",
		serverData: "1703030043275e9f20acff57bc000657d3867df039cccf79047884cf75771746f740b5a83f462a0954c3581393a203a2" +
			"5a7dd14141ef1a37900cdb62ff62dee1ba39ab2590cbf194",
		clientCloseNotify: "17030300130facce3246bdfc6369838d6a82ae6de5d422dc",
		serverCloseNotf:   "17030300135b18af444e8e1eec7158fb62d8f2577d37ba5d",
	},
}

func TestRFC8448(t *testing.T) {
	payload := make([]byte, 50)
	for i := range payload {
		payload[i] = byte(i)
	}
	for name, tr := range traces {
		t.Run(name, func(t *testing.T) {
			s, _ := suiteOf(tls.TLS_AES_128_GCM_SHA256)
			layer := func(client bool) *own {
				in, out := unhex(t, tr.clientSecret), unhex(t, tr.serverSecret)
				if client {
					in, out = out, in
				}
				o, err := newOwn(s, tls.ConnectionState{}, client, in, out)
				if err != nil {
					t.Fatal(err)
				}
				return o
			}
			client, server := layer(true), layer(false)
			for _, k := range []struct {
				h       half
				key, iv string
			}{{client.out, tr.clientKey, tr.clientIV}, {server.out, tr.serverKey, tr.serverIV}} {
				key, err := s.expand(k.h.secret, "key", s.key)
				if k.key != "" && (err != nil || hex.EncodeToString(key) != k.key || hex.EncodeToString(k.h.iv[:]) != k.iv) {
					t.Errorf("key %x, iv %x, %v", key, k.h.iv, err)
				}
			}
			if tr.ticket != "" {
				rec := server.out.seal(nil, typeHandshake, unhex(t, tr.ticket))
				check(t, "ticket", rec, tr.ticketRecord)
				if got, _, err := client.Open(make([]byte, 0, Room), rec); len(got) > 0 || err != nil {
					t.Errorf("the ticket opens to %q, %v", got, err)
				}
			}
			talk(t, client, server, payload, tr.clientData, tr.clientCloseNotify)
			talk(t, server, client, payload, tr.serverData, tr.serverCloseNotf)
		})
	}
}

// talk has one end send payload and close_notify, as want, and the other take it.
func talk(t *testing.T, from, to *own, payload []byte, want ...string) {
	t.Helper()
	data, err := from.Seal(nil, payload)
	if err != nil {
		t.Fatal(err)
	}
	check(t, "data", data, want[0])
	if got, _, err := to.Open(make([]byte, 0, Room), data); !bytes.Equal(got, payload) || err != nil {
		t.Errorf("data opens to %q, %v", got, err)
	}
	end, err := from.CloseWrite(nil)
	if err != nil {
		t.Fatal(err)
	}
	check(t, "close_notify", end, want[1])
	if got, _, err := to.Open(make([]byte, 0, Room), end); len(got) > 0 || err != io.EOF {
		t.Errorf("close_notify opens to %q, %v", got, err)
	}
}

func check(t *testing.T, what string, got []byte, want string) {
	t.Helper()
	if hex.EncodeToString(got) != want {
		t.Errorf("%s: got %x, want %s", what, got, want)
	}
}

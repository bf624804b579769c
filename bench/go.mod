module github.com/usual2970/pushlet/bench

go 1.25.0

replace github.com/usual2970/pushlet => ../

require (
	github.com/gorilla/websocket v1.5.3
	github.com/usual2970/pushlet v0.0.0-00010101000000-000000000000
)

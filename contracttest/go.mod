module github.com/usual2970/pushlet/contracttest

go 1.25.0

require github.com/usual2970/pushlet v0.0.0

require github.com/gorilla/websocket v1.5.3 // indirect

replace github.com/usual2970/pushlet => ../

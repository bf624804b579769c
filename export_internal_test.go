package pushlet

// What the tests of package pushlet_test need of the inside.
var (
	AppendSSEBody = appendSSEBody
	NewStdLogger  = newStdLogger
	AudienceOf    = audienceOf
)
